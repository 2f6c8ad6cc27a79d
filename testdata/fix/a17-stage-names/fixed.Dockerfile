FROM alpine AS base
FROM base AS next
FROM base AS last
COPY --from=Next /a /b
