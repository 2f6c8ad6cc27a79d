FROM alpine
LABEL org.opencontainers.image.authors="Ann \"A\" <ann@example.com> costs \$5 \\ more"
