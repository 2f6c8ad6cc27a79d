# everything in lower case
s/.*/\L&/
