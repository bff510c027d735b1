"""What setup.cfg cannot express: configs/ is installed as lookupvit_video/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lookupvit_video*"]), "lookupvit_video.configs"],
    package_dir={"lookupvit_video.configs": "configs"},
    package_data={
        "lookupvit_video": ["py.typed", "inference/export/browser/*"],
        "lookupvit_video.configs": ["*.yaml", "studies/*.yaml"],
    },
)
