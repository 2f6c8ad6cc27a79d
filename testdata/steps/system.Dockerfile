# The base `system`: users, and places that copies meet.
FROM busybox
COPY <<passwd <<group /etc/
root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:app:/home/app:/bin/sh
nogroup:x:1002:4242::/:/bin/sh
passwd
root:x:0:
staff:x:50:other,app
app:x:1001:
extra:x:2000:app
group
RUN mkdir -m 0700 /keep /keep/sub && chown -R 7:8 /keep \
 && echo old >/keep/file && echo old >/keep/sub/file && ln -s file /keep/link \
 && mkdir -m 0751 /real && ln -s real /dirlink && ln -s ../../../real /deep
CMD ["sh"]
