//! `belfry healthcheck`

use std::{net::IpAddr, net::Ipv4Addr, net::Ipv6Addr, net::SocketAddr, time::Duration};

use clap::Args;

use super::{
    failure::{self, Failure},
    remote,
};
use crate::config::{Sources, load};

/// A container's health check must not hang.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    belfry healthcheck\n  \
    belfry healthcheck --url http://127.0.0.1:8081\n\n\
    Asks /readyz on the internal port of the configuration in force. Exit code 0: ready; 1: not,\n\
    or no answer within 2 s. For health checks of containers that have no curl.")]
pub(super) struct Healthcheck {
    /// Ask here instead
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    trust: remote::Trust,
}

impl Healthcheck {
    pub(super) fn run(self, sources: &Sources) -> Result<(), Failure> {
        let here = self.url.is_none();
        let base = match self.url {
            Some(url) => url,
            // Not ready, and 2 would mean something else to a container engine.
            None => match load::load(sources) {
                Ok(config) => local(config.internal.bind, config.internal.tls.is_some())?,
                Err(faults) => return Err(Failure::new(faults.to_string())),
            },
        };
        let url = match base.trim_end_matches('/') {
            base if base.ends_with("/readyz") => base.to_owned(),
            base => format!("{base}/readyz"),
        };
        remote::block_on(async {
            let client = remote::http(TIMEOUT, |client| {
                if here {
                    // The certificate names a service and not this loopback address, and nothing
                    // secret is sent: as for a kubelet, there is nothing to check it for.
                    Ok(client.tls_danger_accept_invalid_certs(true))
                } else {
                    self.trust.apply(client, sources)
                }
            })?;
            let request = client.get(&url);
            let response = request.send().await.map_err(|error| {
                let cause = remote::chain(&error.without_url());
                Failure::new(format!("no answer from {url}: {cause}"))
            })?;
            if response.status().is_success() {
                failure::print("ready")
            } else {
                Err(Failure::new(format!("not ready: {}", remote::refusal(response).await)))
            }
        })
    }
}

/// How a program on the same machine reaches a listener.
fn local(bind: SocketAddr, tls: bool) -> Result<String, Failure> {
    if bind.port() == 0 {
        return Err(Failure::new("internal.bind takes a free port: say which it is with --url"));
    }
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if tls { "https" } else { "http" };
    Ok(format!("{scheme}://{}", SocketAddr::new(ip, bind.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (bind, url) in [
            ("0.0.0.0:8081", "http://127.0.0.1:8081"),
            ("[::]:8081", "http://[::1]:8081"),
            ("10.1.2.3:80", "http://10.1.2.3:80"),
        ] {
            assert_eq!(local(bind.parse().unwrap(), false).unwrap(), url);
        }
        assert!(local("0.0.0.0:0".parse().unwrap(), false).is_err());
        assert_eq!(local("[::]:1".parse().unwrap(), true).unwrap(), "https://[::1]:1");
    }
}
