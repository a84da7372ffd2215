//! The containers of `envoy-docker/compose.yaml`, as shipped, on a separate Docker engine that `make test-docker` starts as
//! root. The tests use no registry: `make test-docker` builds Envoy's image from the pinned program and its libraries, under
//! the name of the official image, and the base of the tools' image with debootstrap.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod compose;
mod scenarios;

/// Defines the tests for one command of Docker Compose.
macro_rules! tests {
    ($program:expr) => {
        #[test]
        fn the_commands_of_the_readme_print_what_it_shows() -> anyhow::Result<()> {
            crate::scenarios::the_commands_of_the_readme_print_what_it_shows(&$program)
        }

        #[test]
        fn the_destination_the_routers_and_the_counters_agree_about_each_connection() -> anyhow::Result<()> {
            crate::scenarios::the_destination_the_routers_and_the_counters_agree_about_each_connection(
                &$program,
                Module::Wasm,
            )
        }

        #[test]
        fn the_destination_the_routers_and_the_counters_agree_with_the_native_module() -> anyhow::Result<()> {
            crate::scenarios::the_destination_the_routers_and_the_counters_agree_about_each_connection(
                &$program,
                Module::Native,
            )
        }

        #[test]
        fn a_stopped_router_is_replaced_by_the_second_one() -> anyhow::Result<()> {
            crate::scenarios::a_stopped_router_is_replaced_by_the_second_one(&$program)
        }

        #[test]
        fn the_file_with_prometheus_is_valid() -> anyhow::Result<()> {
            crate::scenarios::the_file_with_prometheus_is_valid(&$program)
        }

        #[test]
        fn running_containers_are_not_root_and_have_no_capabilities() -> anyhow::Result<()> {
            crate::scenarios::running_containers_are_not_root_and_have_no_capabilities(&$program)
        }

        #[test]
        fn the_demo_shows_the_egress_of_each_source_and_changes_nothing() -> anyhow::Result<()> {
            crate::scenarios::the_demo_shows_the_egress_of_each_source_and_changes_nothing(&$program, Module::Wasm)
        }

        #[test]
        fn the_demo_shows_the_egress_of_each_source_with_the_native_module() -> anyhow::Result<()> {
            crate::scenarios::the_demo_shows_the_egress_of_each_source_and_changes_nothing(&$program, Module::Native)
        }
    };
}

mod compose_1 {
    use testbed::Module;

    tests!(["docker-compose"]);
}

mod compose_2 {
    use testbed::Module;

    tests!(["docker", "compose"]);

    #[test]
    fn with_failover_clients_of_a_stopped_egress_use_the_other() -> anyhow::Result<()> {
        crate::scenarios::with_failover_clients_of_a_stopped_egress_use_the_other(&["docker", "compose"])
    }

    #[test]
    fn each_tenant_reaches_its_own_destinations_only() -> anyhow::Result<()> {
        crate::scenarios::each_tenant_reaches_its_own_destinations_only(&["docker", "compose"])
    }

    #[test]
    fn the_demo_names_missing_requirements() -> anyhow::Result<()> {
        crate::scenarios::the_demo_names_missing_requirements()
    }
}
