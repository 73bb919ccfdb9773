"""Which folder is which package; everything else about the package is in pyproject.toml.

The Triton kernels lie in `kernels/` and are imported as `altclip_fast.kernels`. That folder has no
`__init__.py`, so that it is never installed as `kernels`: another well-known package has that name.
"""

from pathlib import Path

from setuptools import find_packages, setup

packages = find_packages(include=["altclip_fast", "altclip_fast.*"])
package_dir = {}
if Path(__file__).with_name("kernels").is_dir():
    packages.append("altclip_fast.kernels")
    package_dir["altclip_fast.kernels"] = "kernels"

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "altclip_fast": ["py.typed", "*.json", "embedded/**/*"],
        "altclip_fast.kernels": ["tuned/*.json"],
    },
)
