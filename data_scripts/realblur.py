"""RealBlur-J and -R (Rim 2020). Run: python data_scripts/realblur.py --help"""

from fetch import command

if __name__ == "__main__":
    command("realblur")
