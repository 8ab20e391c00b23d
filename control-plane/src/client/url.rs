//! Far memory by a control plane, in one text:
//! `control://HOST:PORT[,HOST:PORT...]?tls=DIR&replicas=2&class=high&region=NAME`.
//!
//! Options stand once, in any order. What is not known is refused, so that a mistyped option is not
//! silently a default. `%XX` may stand for a byte of a value.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use mycoram_fabric::placement::FailureDomain;
use mycoram_fabric::units::ByteCount;

use super::call::{AddressError, ControlAddress};
use crate::cluster::PriorityClass;

/// How every such text begins.
pub const CONTROL_SCHEME: &str = "control://";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlUrl {
    /// Where the control plane is.
    pub address: ControlAddress,
    /// The certificates, `tls=DIR`; `None`, `insecure=yes`: none.
    pub tls: Option<PathBuf>,
    /// Replicas of each extent, `replicas=N`. Default 1. Each costs as much memory and bandwidth again.
    pub replicas: u8,
    /// With fewer live replicas nothing is written, `min-live=N`. Default 1. More stops writes earlier.
    pub min_live: u8,
    /// Who is refused first, `class=low|normal|high`. Default normal.
    pub class: PriorityClass,
    /// The region's name, `region=NAME`. Default: one that is drawn. A region of that name that is there
    /// is used, if nobody has put anything in it.
    pub region: Option<String>,
    /// Whose regions are, `tenant=N`. Default: a number that is drawn, so that each is on its own.
    pub tenant: Option<u64>,
    /// What the regions are counted on, `reservation=NUMBER` (hexadecimal, as it was printed), of the
    /// `tenant`. Default: nothing.
    pub reservation: Option<u64>,
    /// Only nodes of zones of this name, `zone=NAME`. Default: any.
    pub zone: Option<String>,
    /// Where the owner is, `domain=REGION/ZONE/RACK/HOST`; parts at the end may be missing. Of several replicas one in
    /// its zone is read first. Default: unknown, then the one that answers soonest.
    pub domain: FailureDomain,
    /// How much of a region is placed ahead of need, `ahead=SIZE`. Default 256 MiB. More is taken from the pool,
    /// and outlives a longer absence of the control plane.
    pub ahead: Option<ByteCount>,
    /// The share of the bandwidth that copies of a new region's replicas may take, percent, `copy-percent=N`.
    /// Default 50.
    pub copy_percent: Option<u8>,
    /// The `region` is taken over as it is, from whoever has it, `take-over=yes`: its owner is fenced. What that one
    /// had not written back is lost.
    pub take_over: bool,
}

/// Why a text is no such URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlUrlError {
    /// What stands in front of the `?`.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An option without `=`, given before, or that there is not.
    #[error(
        "\"{option}\" is no option here, or stands twice: there are tls, insecure, replicas, min-live, class, region, tenant, reservation, zone, domain, ahead, copy-percent and take-over"
    )]
    Option {
        /// Its name.
        option: String,
    },
    /// A value that makes no sense.
    #[error("{option}={value} makes no sense")]
    Value {
        /// The option.
        option: String,
        /// What it is given.
        value: String,
    },
    /// `take-over` without a `region`.
    #[error("take-over=yes needs region=NAME: which one?")]
    TakeOver,
    /// Neither or both of `tls` and `insecure`.
    #[error("say tls=DIR for the certificates, or insecure=yes for none")]
    Trust,
}

impl FromStr for ControlUrl {
    type Err = ControlUrlError;

    fn from_str(text: &str) -> Result<Self, ControlUrlError> {
        let (address, query) = text.split_once('?').unwrap_or((text, ""));
        let mut url = Self {
            address: address.parse()?,
            tls: None,
            replicas: 1,
            min_live: 1,
            class: PriorityClass::Normal,
            region: None,
            tenant: None,
            reservation: None,
            zone: None,
            domain: FailureDomain::default(),
            ahead: None,
            copy_percent: None,
            take_over: false,
        };
        let mut insecure = false;
        let mut given: Vec<&str> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (option, raw) = part.split_once('=').unwrap_or((part, ""));
            let wrong = || ControlUrlError::Value {
                option: option.to_owned(),
                value: raw.to_owned(),
            };
            if given.contains(&option) {
                return Err(ControlUrlError::Option {
                    option: option.to_owned(),
                });
            }
            given.push(option);
            let value = unescape(raw).filter(|value| !value.is_empty());
            let value = value.ok_or_else(wrong)?;
            match option {
                "tls" => url.tls = Some(value.into()),
                "insecure" if value == "yes" => insecure = true,
                "replicas" => url.replicas = value.parse().map_err(|_| wrong())?,
                "min-live" => url.min_live = value.parse().map_err(|_| wrong())?,
                "class" => {
                    url.class = match value.as_str() {
                        "low" => PriorityClass::Low,
                        "normal" => PriorityClass::Normal,
                        "high" => PriorityClass::High,
                        _ => return Err(wrong()),
                    };
                }
                "region" => url.region = Some(value),
                "tenant" => url.tenant = Some(value.parse().map_err(|_| wrong())?),
                "reservation" => {
                    let id = u64::from_str_radix(&value, 16).map_err(|_| wrong())?;
                    url.reservation = Some(id);
                }
                "zone" => url.zone = Some(value),
                "domain" => url.domain = value.parse().map_err(|_| wrong())?,
                "ahead" => url.ahead = Some(value.parse().map_err(|_| wrong())?),
                "copy-percent" => {
                    let percent = value.parse().ok();
                    let percent = percent.filter(|percent| (1..=100).contains(percent));
                    url.copy_percent = Some(percent.ok_or_else(wrong)?);
                }
                "take-over" if value == "yes" => url.take_over = true,
                "insecure" | "take-over" => return Err(wrong()),
                _ => {
                    return Err(ControlUrlError::Option {
                        option: option.to_owned(),
                    });
                }
            }
        }
        if insecure == url.tls.is_some() {
            return Err(ControlUrlError::Trust);
        }
        if url.take_over && url.region.is_none() {
            return Err(ControlUrlError::TakeOver);
        }
        Ok(url)
    }
}

impl fmt::Display for ControlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}?", self.address)?;
        match &self.tls {
            Some(directory) => write!(f, "tls={}", escape(&directory.to_string_lossy()))?,
            None => f.write_str("insecure=yes")?,
        }
        write!(f, "&replicas={}&min-live={}", self.replicas, self.min_live)?;
        f.write_str(match self.class {
            PriorityClass::Low => "&class=low",
            PriorityClass::Normal => "&class=normal",
            PriorityClass::High => "&class=high",
        })?;
        if let Some(region) = &self.region {
            write!(f, "&region={}", escape(region))?;
        }
        if let Some(tenant) = self.tenant {
            write!(f, "&tenant={tenant}")?;
        }
        if let Some(reservation) = self.reservation {
            write!(f, "&reservation={reservation:016x}")?;
        }
        if let Some(zone) = &self.zone {
            write!(f, "&zone={}", escape(zone))?;
        }
        if self.domain != FailureDomain::default() {
            write!(f, "&domain={}", escape(&self.domain.to_string()))?;
        }
        if let Some(ahead) = self.ahead {
            write!(f, "&ahead={}", ahead.get())?;
        }
        if let Some(percent) = self.copy_percent {
            write!(f, "&copy-percent={percent}")?;
        }
        if self.take_over {
            f.write_str("&take-over=yes")?;
        }
        Ok(())
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok().filter(|byte| *byte > 0)?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_they_are_written() {
        for text in [
            "control://h:1?insecure=yes&replicas=1&min-live=1&class=normal",
            "control://a:1,b:2?tls=/etc/my%20co&replicas=3&min-live=2&class=high&region=x%26y&tenant=7&reservation=00000000000000ab&zone=z&domain=eu/a/r1/h7&ahead=1048576&copy-percent=20&take-over=yes",
        ] {
            let url: ControlUrl = text.parse().expect("a URL");
            assert_eq!(url.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let read = |text: &str| text.parse::<ControlUrl>().expect_err("wrong");
        assert!(matches!(read("myco://h:1"), ControlUrlError::Address(_)));
        assert_eq!(read("control://h:1"), ControlUrlError::Trust);
        assert_eq!(
            read("control://h:1?insecure=yes&take-over=yes"),
            ControlUrlError::TakeOver
        );
        assert_eq!(
            read("control://h:1?tls=/d&insecure=yes"),
            ControlUrlError::Trust
        );
        for (query, option) in [("replica=2", "replica"), ("class=low&class=low", "class")] {
            let option = option.to_owned();
            assert_eq!(
                read(&format!("control://h:1?{query}")),
                ControlUrlError::Option { option }
            );
        }
        for query in [
            "replicas=x",
            "class=best",
            "insecure=1",
            "tls=",
            "tenant=-1",
            "zone=%0",
            "domain=eu/a/r1/h7/x",
            "ahead=much",
            "copy-percent=0",
            "take-over=no",
        ] {
            let read = read(&format!("control://h:1?{query}"));
            assert!(matches!(read, ControlUrlError::Value { .. }), "{query}");
        }
    }
}
