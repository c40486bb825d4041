# The agent's image, for those who build with Docker. `cargo xtask image` writes the same without it.
#
#   docker build -t ghcr.io/tidegate/tidegate:0.1.0 .

# Debian's rustc-web has a compiled `core` for BPF; rustup's stable builds the rest (rust-toolchain.toml).
FROM debian:trixie AS build
RUN apt-get update && apt-get install --yes --no-install-recommends \
      build-essential ca-certificates cmake curl git pkg-config unzip
RUN curl -fsSL https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
ENV PATH=/root/.cargo/bin:$PATH TIDEGATE_CACHE=/cache
WORKDIR /src
COPY . .
RUN cargo xtask build
# What the agent is linked to, at the paths where its loader looks for it.
RUN mkdir -p /image/usr/local/bin && cp target/release/tidegate /image/usr/local/bin/ \
 && strip --strip-debug /image/usr/local/bin/tidegate \
 && ldd target/release/tidegate | grep -o '/[^ ]*' | sort -u | xargs -I{} cp --parents -L {} /image/ \
 && mkdir -p /image/etc/ssl/certs && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
COPY --from=build /image/ /
ENTRYPOINT ["/usr/local/bin/tidegate"]
