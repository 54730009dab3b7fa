"""The one room that knows nnU-Net's folders and files.

It stays empty: every Python process imports `nnunet_glims.nnunet.discovery` when it starts.
"""
