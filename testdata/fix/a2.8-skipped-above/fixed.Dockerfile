FROM alpine AS a
# check=skip=LegacyKeyValueFormat
ENV a b
ENV c=d
