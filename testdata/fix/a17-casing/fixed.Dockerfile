# syntax=docker/dockerfile:1
FROM alpine AS build
RUN a
RUN b
COPY --from=Build x y
FROM build
CMD ["a"]
