//! What parses, what does not and why, and that a written configuration reads back as it was.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use mycoram_fabric::transport::TransportKind;
use mycoram_fabric::units::ByteCount;

use super::{
    Config, ConfigError, FileError, HostPort, HostPortError, Memory, ParseError, Source, UriError,
};

fn uri(text: &str) -> Result<Config, UriError> {
    text.parse()
}

fn toml(text: &str) -> Result<Config, FileError> {
    Config::from_toml(text, Path::new("/etc/mycoram/far.toml"))
}

#[test]
fn a_control_planes_url_has_options_of_its_own_and_of_this_process() {
    let text = "control://h:7400?tls=/etc/myco&replicas=2&local=64MiB&extent=1MiB";
    let config = Config::parse(text).expect("a configuration");
    assert_eq!(config.local, ByteCount::mib(64));
    assert_eq!(config.extent, ByteCount::mib(1));
    let Source::Control(url) = &config.source else {
        panic!("{config:?}");
    };
    assert_eq!(url.replicas, 2);
    assert_eq!(config.to_string().parse(), Ok(config.clone()));
    let file = "local = \"64MiB\"\nextent = \"1MiB\"\ncontrol = \"control://h:7400?tls=/etc/myco&replicas=2\"";
    let from_file = Config::from_toml(file, Path::new("far.toml")).expect("a configuration");
    assert_eq!(from_file, config);
    assert!(
        "control://h:7400?tls=/d".parse::<Config>().is_err(),
        "no local budget"
    );
    assert!(Config::from_toml(&format!("{file}\nagent = \"/a\""), Path::new("f")).is_err());
}

#[test]
fn a_uri_names_nodes_and_a_budget() {
    let config =
        uri("myco://node-a:7700,[::1]:7701/?local=128MiB&transport=verbs&workers=3").unwrap();
    assert_eq!(config.local, ByteCount::mib(128));
    assert_eq!(config.workers, 3);
    let Source::Nodes { nodes, transport } = config.source else {
        panic!("not nodes")
    };
    assert_eq!(transport, TransportKind::Verbs);
    assert_eq!(nodes[0].host(), "node-a");
    assert_eq!((nodes[1].host(), nodes[1].port()), ("::1", 7701));
}

#[test]
fn a_key_file_is_named_and_a_daemon_has_its_own() {
    let config = uri("myco://a:1?local=8MiB&seal_key=/etc/my%20key").unwrap();
    assert_eq!(config.seal_key, Some(PathBuf::from("/etc/my key")));
    assert_eq!(config.to_string().parse(), Ok(config));
    let text = "local = \"8MiB\"\nseal_key = \"seal.key\"\n";
    let file = toml(&format!("{text}nodes = [\"a:1\"]")).unwrap();
    assert_eq!(file.seal_key, Some(PathBuf::from("/etc/mycoram/seal.key")));
    let control = uri("control://h:7400?tls=/d&local=8MiB&seal_key=/k").unwrap();
    assert_eq!(control.seal_key, Some(PathBuf::from("/k")));
    assert_eq!(control.to_string().parse(), Ok(control));
    assert!(uri("myco+agent:///run/a.sock?local=8MiB&seal_key=/k").is_err());
    assert!(toml(&format!("{text}agent = \"/run/a.sock\"")).is_err());
}

#[test]
fn figures_have_an_address_and_a_daemon_its_own() {
    let config = uri("myco://a:1?local=8MiB&metrics=127.0.0.1:9100").unwrap();
    assert_eq!(config.metrics, Some("127.0.0.1:9100".parse().unwrap()));
    let control = uri("control://h:7400?tls=/d&local=8MiB&metrics=[::1]:0").unwrap();
    assert_eq!(control.metrics, Some("[::1]:0".parse().unwrap()));
    assert_eq!(control.to_string().parse(), Ok(control));
    let text = "local = \"8MiB\"\nmetrics = \"127.0.0.1:9100\"\n";
    let file = toml(&format!("{text}nodes = [\"a:1\"]")).unwrap();
    assert_eq!(file.metrics, config.metrics);
    assert!(toml(&format!("{text}agent = \"/run/a.sock\"")).is_err());
    assert!(uri("myco+agent:///run/a.sock?local=8MiB&metrics=127.0.0.1:1").is_err());
    assert_eq!(
        uri("myco://a:1?local=8MiB&metrics=9100"),
        Err(UriError::Config(ConfigError::Metrics))
    );
}

#[test]
fn a_uri_names_a_daemon() {
    let config = uri("myco+agent:///run/my%20coram/agent.sock?local=8MiB").unwrap();
    assert_eq!(
        config.source,
        Source::Agent(PathBuf::from("/run/my coram/agent.sock"))
    );
}

#[test]
fn what_is_no_uri_is_refused_with_the_reason() {
    let refused = [
        ("http://a:1?local=8MiB", UriError::Scheme),
        ("myco://?local=8MiB", ConfigError::NoNodes.into()),
        ("myco://a:1", ConfigError::NoLocal.into()),
        ("myco://a:1?local", UriError::OptionForm { number: 1 }),
        (
            "myco://a:1?local=8MiB&locl=9MiB",
            UriError::OptionUnknown { number: 2 },
        ),
        (
            "myco://a:1?local=8MiB&local=9MiB",
            UriError::OptionTwice { number: 2 },
        ),
        (
            "myco://a:1,b?local=8MiB",
            UriError::Node {
                number: 2,
                source: HostPortError::Port,
            },
        ),
        (
            "myco://a b:1?local=8MiB",
            UriError::Node {
                number: 1,
                source: HostPortError::Host,
            },
        ),
        (
            "myco://a:1,a:1?local=8MiB",
            ConfigError::NodeTwice {
                node: "a:1".parse().unwrap(),
            }
            .into(),
        ),
        (
            "myco://a:1?local=4KiB",
            ConfigError::Local {
                local: ByteCount::new(4096),
            }
            .into(),
        ),
        (
            "myco://a:1?local=8MiB&extent=3MiB",
            ConfigError::Extent {
                extent: ByteCount::mib(3),
            }
            .into(),
        ),
        (
            "myco://a:1?local=8MiB&workers=65",
            ConfigError::Workers { workers: 65 }.into(),
        ),
        ("myco://a:1?local=8MiB&workers=-1", UriError::Workers),
        (
            "myco://a:1,b:1?local=8MiB&replicas=3",
            ConfigError::Replicas { replicas: 3 }.into(),
        ),
        ("myco://a:1?local=8MiB&replicas=two", UriError::Replicas),
        (
            "myco://a:1?local=8MiB&transport=sim",
            ConfigError::Transport.into(),
        ),
        (
            "myco+agent://run/a.sock?local=8MiB",
            ConfigError::AgentPath.into(),
        ),
        ("myco+agent:///a%zz?local=8MiB", UriError::Escape),
        ("myco+agent:///a%00?local=8MiB", UriError::Escape),
        (
            "myco+agent:///a?local=8MiB&workers=1",
            UriError::OptionUnknown { number: 2 },
        ),
    ];
    for (text, why) in refused {
        assert_eq!(uri(text), Err(why), "{text}");
    }
}

#[test]
fn a_file_says_the_same_as_a_uri() {
    let text = "local = '128MiB'\nnodes = ['a:1', 'b:2']\ntransport = 'tcp'\nreplicas = 2";
    let from_file = toml(text).unwrap();
    let from_uri = uri("myco://a:1,b:2?local=128MiB&replicas=2").unwrap();
    assert_eq!((from_file.replicas, &from_file), (2, &from_uri));
    let from_file = toml("local = 8388608\nagent = '/run/a.sock'").unwrap();
    assert_eq!(
        from_file,
        uri("myco+agent:///run/a.sock?local=8MiB").unwrap()
    );
}

#[test]
fn a_nodes_file_is_looked_for_beside_the_file_that_names_it() {
    let config = toml("local = '8MiB'\nnodes_file = 'nodes.toml'").unwrap();
    assert_eq!(
        config.source,
        Source::NodesFile(PathBuf::from("/etc/mycoram/nodes.toml"))
    );
}

#[test]
fn what_is_no_configuration_file_is_refused_with_the_reason() {
    assert!(matches!(toml("local = "), Err(FileError::Toml { .. })));
    assert!(matches!(
        toml("local = '8MiB'\nnodes = ['a:1']\nbudget = 1"),
        Err(FileError::Toml { .. })
    ));
    assert!(matches!(
        toml("local = '8MiB'\nnodes = ['a:1']\nagent = '/a'"),
        Err(FileError::TwoSources { .. })
    ));
    assert!(matches!(
        toml("local = '8MiB'\nagent = '/a'\nworkers = 1"),
        Err(FileError::Meaningless {
            option: "workers",
            ..
        })
    ));
    assert!(matches!(
        toml("local = '8MiB'\nnodes = ['a:1', 'b']"),
        Err(FileError::Node { number: 2, .. })
    ));
    assert!(matches!(
        toml("local = '8MiB'"),
        Err(FileError::Config {
            source: ConfigError::NoNodes,
            ..
        })
    ));
    assert!(matches!(
        Config::parse("/nonexistent/far.toml"),
        Err(ParseError::File(FileError::Read { .. }))
    ));
}

fn any_host_port() -> impl Strategy<Value = HostPort> {
    let name = "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?";
    let v6 = any::<u128>().prop_map(|bits| format!("[{}]", std::net::Ipv6Addr::from(bits)));
    (prop_oneof![name.prop_map(|n| n), v6], 1u16..)
        .prop_map(|(host, port)| format!("{host}:{port}").parse().unwrap())
}

fn any_config() -> impl Strategy<Value = Config> {
    let nodes = (
        proptest::collection::hash_set(any_host_port(), 1..5),
        prop_oneof![Just(TransportKind::Tcp), Just(TransportKind::Verbs)],
        16u32..=24,
        0u16..=64,
        prop_oneof![Just(Memory::Private), Just(Memory::File)],
    )
        .prop_map(|(nodes, transport, extent_shift, workers, memory)| {
            let source = Source::Nodes {
                nodes: nodes.into_iter().collect(),
                transport,
            };
            (source, 1u64 << extent_shift, workers, memory)
        });

    let agent = "/[ -~é]{0,30}".prop_map(|path| {
        let source = Source::Agent(PathBuf::from(path));
        (source, 16 << 20, 0, Memory::default())
    });
    let key = proptest::option::of("/[ -~é]{0,30}");
    let metrics = proptest::option::of(any::<std::net::SocketAddrV4>());
    (prop_oneof![nodes, agent], 256u64..1 << 40, key, metrics).prop_map(
        |((source, extent, workers, memory), pages, key, metrics)| Config {
            metrics: metrics
                .filter(|_| !matches!(source, Source::Agent(_)))
                .map(Into::into),
            seal_key: key
                .filter(|_| !matches!(source, Source::Agent(_)))
                .map(PathBuf::from),
            source,
            local: ByteCount::new(pages * 4096),
            extent: ByteCount::new(extent),
            replicas: 1,
            workers,
            memory,
        },
    )
}

proptest! {
    #[test]
    fn a_written_configuration_reads_back(config in any_config()) {
        prop_assert_eq!(uri(&config.to_string()), Ok(config));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(myco://|myco\\+agent://)?.{0,60}") {
        let _ = uri(&text);
        let _ = toml(&text);
    }

    #[test]
    fn what_parses_is_possible(text in "myco://[a-z0-9.:,]{1,12}\\?local=[0-9]{1,9}(KiB|MiB)?(&extent=[0-9]{1,8})?") {
        if let Ok(config) = uri(&text) {
            prop_assert_eq!(config.check(), Ok(()));
        }
    }
}
