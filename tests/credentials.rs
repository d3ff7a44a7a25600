//! Token and secret key from files: a rotation, or the correction of a mistake, needs no restart.

use std::fs;

use anyhow::Result;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Context, suite};
use crate::support::bed::{Bed, LIMIT};
use crate::support::eventually;
use crate::support::simulator::SECRET_KEY;

suite!(Broker:
    a_secret_that_is_mended_in_its_file_heals_without_a_restart,
    a_rotated_secret_costs_no_attempt_once_its_file_has_changed,
    a_file_that_is_gone_for_a_while_stops_nothing,
);

const FILE: &str = "secret_key";

/// A portal that says when a checksum is wrong, and a relay whose secret key stands in a file.
async fn bed_with_secret_in_file(context: &Context, secret: &str) -> Result<(Bed, TempDir)> {
    let mut bed = context.bed_with(&["--messages", "detailed"]).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join(FILE);
    fs::write(&file, secret)?;
    let path = file.to_str().unwrap();
    bed.settings.set("portal.secret_key", "").set("portal.secret_key_file", path);
    Ok((bed, folder))
}

async fn a_secret_that_is_mended_in_its_file_heals_without_a_restart(
    context: Context,
) -> Result<()> {
    let (bed, folder) = bed_with_secret_in_file(&context, "a mistake\n").await?;
    let file = folder.path().join(FILE);
    let relay = bed.start_relay().await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    eventually("a refused call", LIMIT, || async {
        Ok((!bed.simulator.requests("C1").await?.is_empty()).then_some(()))
    })
    .await?;
    fs::write(&file, format!("{SECRET_KEY}\n"))?;
    bed.applied("C1", 1).await?;
    let calls = bed.simulator.requests("C1").await?;
    assert_eq!(calls[0]["checksum_ok"], false);
    assert_eq!(calls[calls.len() - 1]["checksum_ok"], true);
    let output = bed.end(relay).await?;
    assert!(output.contains("credentials have changed"), "{output}");
    assert!(!output.contains(SECRET_KEY) && !output.contains("a mistake"), "{output}");
    Ok(())
}

async fn a_rotated_secret_costs_no_attempt_once_its_file_has_changed(
    context: Context,
) -> Result<()> {
    let (bed, folder) = bed_with_secret_in_file(&context, SECRET_KEY).await?;
    let file = folder.path().join(FILE);
    let relay = bed.start_relay().await?;
    for round in 0..3 {
        let secret = format!("secret of round {round}");
        fs::write(&file, &secret)?;
        bed.simulator.expect_secret(&secret).await?;
        let customer = format!("C{round}");
        bed.publish(&bed.event("e", &customer, &json!({"city": "Kochi"}))).await?;
        bed.applied(&customer, 1).await?;
    }
    let output = bed.end(relay).await?;
    assert!(output.contains("3 applied") && output.contains(" 0 to a retry"), "{output}");
    Ok(())
}

async fn a_file_that_is_gone_for_a_while_stops_nothing(context: Context) -> Result<()> {
    let (bed, folder) = bed_with_secret_in_file(&context, SECRET_KEY).await?;
    let file = folder.path().join(FILE);
    let relay = bed.start_relay().await?;
    fs::remove_file(&file)?;
    eventually("a warning", LIMIT, || async {
        Ok(relay.output().contains("stay as they were").then_some(()))
    })
    .await?;
    bed.publish(&bed.event("e1", "C1", &json!({"city": "Kochi"}))).await?;
    bed.applied("C1", 1).await?;
    bed.end(relay).await.map(drop)
}
