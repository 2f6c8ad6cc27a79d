FROM alpine
RUN a \
    # comment
    b
RUN <<E
a \

b
E
RUN c \
