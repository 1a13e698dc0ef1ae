"Pass the dependency lists and console scripts of `settings.ini` to setuptools; everything static is in `pyproject.toml`."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
ini = ini['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k,v in ini.items() if k.endswith('_requirements')}

setup(install_requires=ini['requirements'].split(), extras_require=extras,
      entry_points=dict(console_scripts=ini['console_scripts'].split(),
                        nbdev=[f"{ini['lib_path']}={ini['lib_path']}._modidx:d"]))
