FROM alpine
MAINTAINER Ann \
# who
  A
