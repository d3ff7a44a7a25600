//! `healthy`: for health checks where there is no curl, as in the image.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail};
use url::Url;

use super::{Exit, Usage, block_on, load, output};
use crate::admin;
use crate::config::{Layers, Needs, safe_url};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The page to ask, such as /readyz of that port [default: /livez at admin.listen]
    #[arg(value_parser = safe_url)]
    url: Option<Url>,
}

pub(super) fn healthy(args: &Args, layers: &Layers) -> anyhow::Result<Exit> {
    let config = load(layers, Needs::Broker)?;
    let url = match (&args.url, config.admin.listen) {
        (Some(url), _) => url.clone(),
        (None, Some(listen)) => livez(listen)?,
        (None, None) => bail!(Usage("admin.listen is not set; set it, or name a URL".into())),
    };
    let (status, text) = block_on(&config, async { Ok(admin::probe(&url).await?) })?;
    if status != 200 {
        bail!("{url} answers {status}: {}", text.trim_end());
    }
    output::print(&text)?;
    Ok(Exit::Done)
}

/// A port that listens on every address is asked on this host's own.
fn livez(listen: SocketAddr) -> anyhow::Result<Url> {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    let url = format!("http://{}/livez", SocketAddr::new(address, listen.port()));
    url.parse().context("admin.listen makes no URL")
}

#[cfg(test)]
mod tests {
    use super::livez;

    #[test]
    fn a_port_on_every_address_is_asked_on_the_loopback_one() {
        let asked = |listen: &str| livez(listen.parse().unwrap()).unwrap().to_string();
        assert_eq!(asked("0.0.0.0:9090"), "http://127.0.0.1:9090/livez");
        assert_eq!(asked("[::]:9090"), "http://[::1]:9090/livez");
        assert_eq!(asked("10.0.0.7:80"), "http://10.0.0.7/livez");
    }
}
