//! Whether an owner that comes may come: its grant, checked offline. Pure; the time is told.
//!
//! ```text
//!   Open{grant} -> signed by this cluster? -> for exactly this tenant, region, epoch, node and life, owner?
//!               -> not over? -> the ledger (which knows the epochs that were here before)
//! ```
//!
//! A session that is open stays open when its grant's time is over: what ends a session is a higher
//! epoch. Tickets are given to open sessions only, so data connections need no check of their own.

use crate::units::{Epoch, Incarnation};
use crate::wire::control::Open;
use crate::wire::grant::{ClusterKey, TokenDigest};
use crate::wire::{GrantField, Refusal};

/// What a node checks grants against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantCheck {
    /// The public key of the cluster that the node belongs to.
    pub key: ClusterKey,
    /// What the control plane calls the node.
    pub node: String,
}

impl GrantCheck {
    /// Whether `open` at `epoch` may go on. `now_ms`: ms since 1970 (UTC), by the node's clock; `life`: its own.
    pub(super) fn check(
        &self,
        now_ms: u64,
        life: Incarnation,
        epoch: Epoch,
        open: &Open,
    ) -> Result<(), Refusal> {
        let grant = open.grant.as_ref().ok_or(Refusal::GrantMissing {})?;
        let terms = self
            .key
            .verify(grant)
            .map_err(|_| Refusal::GrantForged {})?;
        let for_this_node = terms.node.as_ref().is_none_or(|node| *node == self.node);
        for (holds, what) in [
            (terms.cluster == self.key.cluster(), GrantField::Cluster),
            (terms.tenant == open.tenant, GrantField::Tenant),
            (terms.region == open.region, GrantField::Region),
            (terms.epoch == epoch, GrantField::Epoch),
            (for_this_node, GrantField::Node),
            // Started again, the node has other memory than the one that was spoken of.
            (
                terms.incarnation.is_none_or(|of| of == life),
                GrantField::Incarnation,
            ),
            (
                terms.token == TokenDigest::of(&open.token),
                GrantField::Owner,
            ),
        ] {
            if !holds {
                return Err(Refusal::GrantForOther { what });
            }
        }
        if now_ms >= terms.not_after_ms {
            return Err(Refusal::GrantExpired {
                not_after_ms: terms.not_after_ms,
                now_ms,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{RegionId, TenantId};
    use crate::wire::control::Token;
    use crate::wire::grant::{ClusterId, GrantTerms, SigningKey};

    const NOW_MS: u64 = 1_800_000_000_000;
    const LIFE: Incarnation = Incarnation::new(11);
    const TOKEN: Token = Token([3; 16]);

    fn terms() -> GrantTerms {
        GrantTerms {
            cluster: ClusterId([7; 16]),
            tenant: TenantId::new(1),
            region: RegionId::new(2),
            epoch: Epoch::new(5),
            not_after_ms: NOW_MS + 1,
            token: TokenDigest::of(&TOKEN),
            node: Some("n1".to_owned()),
            incarnation: Some(LIFE),
        }
    }

    #[test]
    fn only_the_very_thing_that_was_granted_is_let_in() {
        let signing = SigningKey::draw(ClusterId([7; 16])).expect("a key");
        let stranger = SigningKey::draw(ClusterId([7; 16])).expect("a key");
        let check = GrantCheck {
            key: signing.public(),
            node: "n1".to_owned(),
        };
        let try_open = |key: &SigningKey, terms: &GrantTerms| {
            let grant = Some(key.sign(terms).expect("short"));
            let open = Open {
                tenant: TenantId::new(1),
                region: RegionId::new(2),
                token: TOKEN,
                owner: 1,
                create: true,
                grant,
            };
            check.check(NOW_MS, LIFE, Epoch::new(5), &open)
        };
        let other = |what| Err(Refusal::GrantForOther { what });
        assert_eq!(try_open(&signing, &terms()), Ok(()));
        let any_node = GrantTerms {
            node: None,
            incarnation: None,
            ..terms()
        };
        assert_eq!(try_open(&signing, &any_node), Ok(()));
        assert_eq!(try_open(&stranger, &terms()), Err(Refusal::GrantForged {}));
        for (changed, what) in [
            (
                GrantTerms {
                    cluster: ClusterId([8; 16]),
                    ..terms()
                },
                GrantField::Cluster,
            ),
            (
                GrantTerms {
                    tenant: TenantId::new(9),
                    ..terms()
                },
                GrantField::Tenant,
            ),
            (
                GrantTerms {
                    region: RegionId::new(9),
                    ..terms()
                },
                GrantField::Region,
            ),
            (
                GrantTerms {
                    epoch: Epoch::new(4),
                    ..terms()
                },
                GrantField::Epoch,
            ),
            (
                GrantTerms {
                    node: Some("n2".to_owned()),
                    ..terms()
                },
                GrantField::Node,
            ),
            (
                GrantTerms {
                    incarnation: Some(Incarnation::new(12)),
                    ..terms()
                },
                GrantField::Incarnation,
            ),
            (
                GrantTerms {
                    token: TokenDigest::of(&Token([4; 16])),
                    ..terms()
                },
                GrantField::Owner,
            ),
        ] {
            assert_eq!(try_open(&signing, &changed), other(what));
        }
        let over = GrantTerms {
            not_after_ms: NOW_MS,
            ..terms()
        };
        assert_eq!(
            try_open(&signing, &over),
            Err(Refusal::GrantExpired {
                not_after_ms: NOW_MS,
                now_ms: NOW_MS
            })
        );
    }
}
