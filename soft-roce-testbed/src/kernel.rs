//! Kernel series the test bed knows, and which packages of an apt suite make one: pure choices.

use std::fmt;
use std::str::FromStr;

/// A kernel series with known Soft-RoCE abilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelSeries {
    /// Debian 12's own: no UFFDIO_POISON, no WP_ASYNC; rxe only in the initial namespace.
    V6_1,
    /// Debian 12 backports: ATOMIC WRITE, FLUSH; rxe only in the initial namespace.
    V6_12,
    /// Debian 13 backports: also on-demand paging and rxe inside network namespaces.
    V7_2,
}

/// A series that is not one of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("kernel {asked:?} is not one of 6.1, 6.12, 7.2")]
pub struct KernelSeriesError {
    asked: Box<str>,
}

impl KernelSeries {
    /// The series as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }

    /// The Debian suite that carries it.
    pub const fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "bookworm-backports",
            Self::V7_2 => "trixie-backports",
        }
    }

    /// Whether an rxe device may live in a network namespace other than the initial one.
    pub const fn has_rxe_in_namespaces(self) -> bool {
        matches!(self, Self::V7_2)
    }

    /// The prefix all candidate package names share; names are asked of apt with it.
    pub(crate) fn package_prefix(self) -> String {
        format!("{}{}", self.package_stem(), self.name())
    }

    const fn package_stem(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_12 => "linux-image-",
            Self::V7_2 => "linux-binary-",
        }
    }

    /// Picks the newest full-flavour amd64 kernel of this series out of package `names`, and the
    /// packages that together hold its image and modules.
    pub(crate) fn packages<'a>(self, names: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
        let newest = names
            .filter_map(|name| self.release_of(name))
            .max_by_key(|release| numbers(release))?;
        Some(match self {
            Self::V6_1 | Self::V6_12 => vec![format!("linux-image-{newest}")],
            Self::V7_2 => ["linux-binary-", "linux-modules-", "linux-base-"]
                .iter()
                .map(|stem| format!("{stem}{newest}"))
                .collect(),
        })
    }

    /// `6.1.0-56-amd64` of `linux-image-6.1.0-56-amd64`, if it is a full-flavour kernel of this series.
    fn release_of(self, package: &str) -> Option<&str> {
        let release = package.strip_prefix(self.package_stem())?;
        let version = release.strip_suffix("-amd64")?;
        let flavoured = ["-rt", "-cloud"]
            .iter()
            .any(|flavour| version.ends_with(flavour));
        let in_series = version
            .strip_prefix(self.name())
            .is_some_and(|rest| rest.starts_with('.'));
        (in_series && !flavoured).then_some(release)
    }
}

/// The numbers of a release, for comparing: `7.2.12+deb13` is newer than `7.2.9+deb13`.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

impl fmt::Display for KernelSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KernelSeries {
    type Err = KernelSeriesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::V6_1, Self::V6_12, Self::V7_2]
            .into_iter()
            .find(|series| series.name() == text)
            .ok_or_else(|| KernelSeriesError { asked: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_newest_by_number_not_by_letter() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.12.3+deb12-amd64",
        ];
        assert_eq!(
            KernelSeries::V6_1.packages(names.into_iter()),
            Some(vec!["linux-image-6.1.0-56-amd64".to_owned()])
        );
        assert_eq!(
            KernelSeries::V6_12.packages(names.into_iter()),
            Some(vec!["linux-image-6.12.3+deb12-amd64".to_owned()])
        );
    }

    #[test]
    fn takes_the_three_packages_of_a_split_kernel() {
        let names = [
            "linux-binary-7.2.9+deb13-amd64",
            "linux-binary-7.2.12+deb13-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-amd64",
        ];
        let packages = KernelSeries::V7_2.packages(names.into_iter()).unwrap();
        assert_eq!(
            packages,
            [
                "linux-binary-7.2.12+deb13-amd64",
                "linux-modules-7.2.12+deb13-amd64",
                "linux-base-7.2.12+deb13-amd64"
            ]
        );
    }

    #[test]
    fn none_where_the_series_is_missing() {
        assert_eq!(
            KernelSeries::V7_2
                .packages(["linux-binary-7.20.1-amd64", "linux-image-6.12-amd64"].into_iter()),
            None
        );
        assert_eq!(
            KernelSeries::V6_12.packages(["linux-image-6.12-amd64"].into_iter()),
            None
        );
    }

    #[test]
    fn parses_what_users_write() {
        assert_eq!("7.2".parse(), Ok(KernelSeries::V7_2));
        assert!(
            "7".parse::<KernelSeries>()
                .unwrap_err()
                .to_string()
                .contains("6.1, 6.12, 7.2")
        );
    }
}
