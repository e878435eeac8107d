"""BSDS500 (Arbelaez 2011). Run: python data_scripts/bsds500.py --help"""

from fetch import command

if __name__ == "__main__":
    command("bsds500")
