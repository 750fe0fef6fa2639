from setuptools import find_packages, setup

plugins = ["llmlab_plugins" + p.removeprefix("plugins") for p in find_packages(include=["plugins", "plugins.*"])]
setup(
    packages=find_packages("src") + plugins + ["llmlab_conf"],
    package_dir={"": "src", "llmlab_plugins": "plugins", "llmlab_conf": "conf"},
    package_data={
        "llmlab_conf": ["**/*.yaml"],
        "llmlab": ["py.typed", "check/reference.json", "check/twins/records/*.json"],
    },
)
