//! The docker command, for what testcontainers does not offer: two networks a container, one of
//! which is taken away from it and given back.

use anyhow::{Context, Result, ensure};

use crate::support::process;

/// Runs a docker command; what it printed.
pub(crate) async fn docker(args: &[&str]) -> Result<String> {
    let run = process::run("docker", args, &[], b"").await;
    let (code, out, err) = run.with_context(|| format!("docker {}", args.join(" ")))?;
    ensure!(code == 0, "docker {}: {}", args.join(" "), err.trim());
    Ok(out)
}

/// Fails with the reason why no container of `image` can run here.
pub(crate) async fn ready_for(image: &str) -> Result<()> {
    docker(&["version"]).await.context("Docker does not work here")?;
    let present = docker(&["image", "inspect", image]).await;
    present.with_context(|| format!("there is no image {image}; `make setup` gets it"))?;
    Ok(())
}
