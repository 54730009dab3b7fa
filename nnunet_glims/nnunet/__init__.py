"""All code that knows nnU-Net's folders and files.

This module must stay empty, because every Python process imports `nnunet_glims.nnunet.discovery` when it starts.
"""
