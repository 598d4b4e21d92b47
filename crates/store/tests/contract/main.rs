//! Holds both engines to the contract of [`store::Store`].
//!
//! Needs the `etcd` program in the path for the second one; it runs on loopback, on free ports, in
//! a temporary folder.

mod checker;
mod cluster;
mod engines;
mod suite;

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let engine = crate::engines::embedded();
                    crate::suite::$name(engine.store.clone()).await;
                }
            )*
        }
        mod etcd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let engine = crate::engines::etcd().await;
                    crate::suite::$name(engine.store.clone()).await;
                }
            )*
        }
    };
}

contract!(
    writes_are_conditional,
    one_of_many_writers_wins,
    pages_share_one_revision,
    a_list_and_its_watch_make_the_later_list,
    watches_see_their_range_in_order,
    compacted_history_is_refused,
    future_revisions_are_refused,
    progress_means_that_all_has_come,
    progress_can_be_asked_of_some,
    keys_expire,
    large_values_are_refused,
    a_slow_reader_misses_nothing_or_is_closed,
    histories_are_linearizable,
);
