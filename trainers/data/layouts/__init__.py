"""Layouts of speech data that people have, recognised by what lies in a folder: `recognition.open_layout`."""
