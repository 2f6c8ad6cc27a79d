FROM alpine AS base
# café
RUN a \
  b
ENV k="v w"

RUN c
CMD x