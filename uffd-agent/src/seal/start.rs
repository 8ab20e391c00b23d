//! Which regions are sealed: one that starts, if its configuration names a key file; one that is taken over, if
//! it was sealed before.

use std::path::Path;
use std::sync::Arc;

use mycoram_fabric::pages::RemoteRegion;
use mycoram_fabric::units::RegionId;

use super::cipher::Cipher;
use super::key::{self, SealError, SealHeader};
use super::lane::SealedRegion;
use crate::page_table::SealTable;

/// A region's key, or that it has none.
#[derive(Debug, Default)]
pub(crate) struct RegionCipher(Option<Cipher>);

/// For a region that starts.
pub(crate) fn begin(
    key_file: Option<&Path>,
    region: RegionId,
) -> Result<(Option<SealHeader>, RegionCipher), SealError> {
    let Some(path) = key_file else {
        return Ok((None, RegionCipher(None)));
    };
    let (header, cipher) = key::begin(path, region)?;
    Ok((Some(header), RegionCipher(Some(cipher))))
}

/// For a region whose agent has died, as that agent's state file has it.
pub(crate) fn go_on(
    key_file: Option<&Path>,
    region: RegionId,
    header: Option<&SealHeader>,
) -> Result<RegionCipher, SealError> {
    match (header, key_file) {
        (None, None) => Ok(RegionCipher(None)),
        (None, Some(path)) => {
            tracing::warn!(%region, key_file = %path.display(), "the region was started without a key, and its pages go on unsealed");
            Ok(RegionCipher(None))
        }
        (Some(_), None) => Err(SealError::KeyMissing),
        (Some(header), Some(path)) => Ok(RegionCipher(Some(key::go_on(path, region, header)?))),
    }
}

impl RegionCipher {
    /// The region's remote side, sealed if the region is. `table` is there where it is.
    pub(crate) fn over(
        self,
        remote: Arc<dyn RemoteRegion>,
        table: Option<SealTable>,
    ) -> Arc<dyn RemoteRegion> {
        match (self.0, table) {
            (Some(cipher), Some(table)) => Arc::new(SealedRegion::over(remote, cipher, table)),
            _ => remote,
        }
    }
}
