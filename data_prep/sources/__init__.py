"""Where the prepare_* commands get their rows from: any table or folder of images, FungiTastic, ARTeFACT.

May import common and the other sub-packages of data_prep but for leaks.
"""
