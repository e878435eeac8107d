"""Koehler (2012). Run: python data_scripts/kohler.py --help"""

from fetch import command

if __name__ == "__main__":
    command("kohler")
