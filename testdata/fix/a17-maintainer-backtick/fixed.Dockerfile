# escape=`
FROM alpine
LABEL org.opencontainers.image.authors="Ann `"A`" C:\x ``y `$5"
