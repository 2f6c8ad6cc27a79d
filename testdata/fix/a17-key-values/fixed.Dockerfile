FROM alpine
ENV one=1
ENV two="2 and  more"
ENV three="3 3 # no comment"
LABEL four it's
ENV PATH=/x:$PATH
ENV six="a \
    # between
    b"
ONBUILD ENV seven="7 7"
