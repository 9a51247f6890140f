"""What stages that keep blocks on a disk have in common, wherever they put them.

`header` and `layout` are pure: what a stored block says of itself, and where its bytes lie beside that. `writes` tells
when a block is whole. `transfer` is what a lane works with.
"""
