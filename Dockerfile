# docker build -t waypost .
# docker run -p 3000:3000 -e WAYPOST_ETCD=http://etcd.example.com:2379 waypost

FROM rust:1.95-bookworm AS build
WORKDIR /waypost
# The dependencies first: this layer is built anew only when they change.
COPY .cargo .cargo
COPY scripts/protoc scripts/
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --release --locked && rm -r src
COPY src src
# Touched, so that cargo takes them for newer than the empty files that it built just now.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM debian:bookworm-slim
# For an etcd or an upstream behind a public certificate.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /waypost/target/release/waypost /usr/local/bin/
USER 65532:65532
# 9900 is the admin API. It listens on the container's loopback unless WAYPOST_ADMIN says otherwise.
EXPOSE 3000 9900
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["waypost", "healthcheck", "--ready"]
ENTRYPOINT ["waypost"]
CMD ["serve"]
