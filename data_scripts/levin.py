"""Levin (2009). Run: python data_scripts/levin.py --help"""

from fetch import command

if __name__ == "__main__":
    command("levin")
