from setuptools import find_packages, setup

# `find` in pyproject.toml can't rename, and would need each folder of plugins/ listed by hand.
plugins = ["llmlab_plugins" + p.removeprefix("plugins") for p in find_packages(include=["plugins", "plugins.*"])]
setup(
    packages=find_packages("src") + plugins + ["llmlab_conf"],
    package_dir={"": "src", "llmlab_plugins": "plugins", "llmlab_conf": "conf"},
    # Without `include-package-data`, which goes by a MANIFEST or version control: only what is named is carried.
    package_data={
        "llmlab_conf": ["**/*.yaml"],
        "llmlab": ["py.typed", "check/reference.json", "check/twins/records/*.json"],
    },
)
