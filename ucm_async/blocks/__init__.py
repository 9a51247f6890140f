"""What stages that keep blocks on a disk have in common, wherever they put them.

`header`, `layout` and `plans` are pure: what a stored block says of itself, where its bytes lie beside that, and which
requests move them. `writes` tells when a block is whole, `transfer` is what a lane works with; `loading` brings
batches, and `dumping` takes them.
"""
