"""The package, described by settings.ini alone: nothing about it is written a second time here."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

ending = "_requirements"
extras = {key.removesuffix(ending): cfg[key].split() for key in cfg if key.endswith(ending)}
features = [extras[name] for name in extras if name not in ("dev", "optional")]
extras["all"] = sorted({package for packages in features for package in packages})

# `llmtrainer[tested]` takes the releases of the requirements that were tested; `doctor` reads them
lock = (here / "constraints.txt").read_text(encoding="utf-8").splitlines()
required = {re.split(r"[\[<>=]", requirement)[0] for requirement in cfg["requirements"].split()}
pins = [line for line in lock if not line.startswith("#")]
extras["tested"] = [
    pin for pin in pins if pin.split("==")[0] in {name.replace("_", "-") for name in required}
]

statuses = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
readme = here / "README.md"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"]},
    license="Apache-2.0",
    keywords=cfg["keywords"],
    classifiers=[
        "Development Status :: " + statuses[cfg["status"]],
        "Intended Audience :: " + cfg["audience"],
        "Natural Language :: " + cfg["language"],
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["llmtrainer", "llmtrainer.*"]),
    package_data={"llmtrainer": ["models/base/*", "**/*.jinja", "**/*.json", "**/*.safetensors"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
