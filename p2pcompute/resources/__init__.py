"""What nodes have, what jobs need, and which of them fit.

A node says of itself what it has measured (`attributes`), others ask it (`questions`, `service`) and keep the answer
for a while (`known`).  Conditions over it are written in CEL (`notation`, `expressions`); `matching` compares jobs and
nodes with them, and `explaining` says why none fits.  By its features, in 24 bytes (`classes`), an index of the group
finds nodes that nobody here knows.
"""
