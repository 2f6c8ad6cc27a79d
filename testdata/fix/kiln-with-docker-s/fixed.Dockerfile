FROM debian:12 AS base
RUN apt-get update && \
    apt-get install -y curl && \
    # kept
    apt-get install -y wget
RUN pip install x
ADD a /b
