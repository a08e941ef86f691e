"""Puts the recipes, their settings and the launch configurations into a wheel, for use without a clone."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("recipes", "accelerate_configs", "deepspeed_configs")  # as in rlhf_recipes/recipes/files.py


class WithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # installed where it stands: the folders are beside the library
            return
        for name in FOLDERS:
            target = Path(self.build_lib, "rlhf_recipes", "recipes", "shipped", name)
            shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": WithRecipes})
