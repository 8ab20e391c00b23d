//! Grants for owners, signed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mycoram_fabric::units::Incarnation;
use mycoram_fabric::wire::control::Token;
use mycoram_fabric::wire::grant::{GrantError, GrantTerms, SigningKey, TokenDigest};

use crate::cluster::RegionRecord;

/// How long a grant is worth something. Longer survives a longer absence of the control plane and more
/// difference between clocks; the epoch, not this, keeps a former owner out.
const GRANT_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The grant for the region's present owner on this life of `node`, and its end in ms since 1970.
pub(super) fn sign(
    key: &SigningKey,
    region: &RegionRecord,
    node: &str,
    incarnation: Option<Incarnation>,
) -> Result<(Vec<u8>, u64), GrantError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let until = since.unwrap_or_default().saturating_add(GRANT_LIFE);
    let not_after_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
    let grant = key.sign(&GrantTerms {
        cluster: key.cluster(),
        tenant: region.tenant,
        region: region.id,
        epoch: region.lease.epoch(),
        not_after_ms,
        token: TokenDigest::of(&Token(region.secret)),
        node: Some(node.to_owned()),
        incarnation,
    })?;
    Ok((grant.as_bytes().to_vec(), not_after_ms))
}
