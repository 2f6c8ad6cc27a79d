# check=skip=MaintainerDeprecated
FROM alpine AS a
MAINTAINER me
