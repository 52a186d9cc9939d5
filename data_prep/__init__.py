"""Commands that make, check and divide data sets; each is a script of this folder, its parts are in the sub-packages.

May import common, which never imports this. Inside: commands -> folder -> rows -> parts, and
find_leaks -> leaks. Nothing imports a command.
"""
