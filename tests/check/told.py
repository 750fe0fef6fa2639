"""What the tests of `llmlab check` let a check say."""

from llmlab.check import report


def raising(error):
    def ask(*unused):
        raise error

    return ask


def results(case, **checks):
    return [report.Result(case.name, check, *said) for check, said in checks.items()]
