"""The Compress stage's room. `codecs` has the codecs, `pool` the memory they work in."""
