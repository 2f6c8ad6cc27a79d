//! Basic builds on busybox.

use crate::env::test_env;

#[test]
fn a_file_is_copied_and_read_by_a_step() {
    let env = test_env!().with_busybox();
    env.file("hello", "world\n");
    env.built(
        "one",
        "FROM busybox\nCOPY hello /hello\nRUN tr a-z A-Z </hello >/loud\n",
    );
    let saved = env.saved("one");
    assert_eq!(saved.text("loud"), "WORLD\n");
    assert_eq!(saved.top_paths(), ["loud"]);
}
