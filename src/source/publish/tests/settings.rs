//! Settings of routes come, go and go bad.

use super::*;

#[tokio::test]
async fn settings_come_and_go_and_a_bad_one_keeps_the_last_good() {
    let bench = Bench::start();
    let settings = "a.example/api/@settings";
    bench
        .snapshot(
            1,
            &[
                ("a.example/api/10.0.0.1:80", "", 1),
                (settings, r#"{"strip_prefix": true}"#, 1),
            ],
        )
        .await;
    let strips = |bench: &Bench| {
        bench
            .route("a.example", "/api")
            .map(|route| route.settings.strip_prefix)
    };
    assert_eq!(strips(&bench), Some(true));
    bench.put(settings, r#"{"mirror": "b:80"}"#, 2).await;
    assert_eq!(strips(&bench), Some(true));
    assert_eq!(
        bench.rejected(),
        [("/hosts/a.example/api/@settings".to_owned(), true)]
    );
    bench
        .put(settings, r#"{"host_header": "upstream"}"#, 3)
        .await;
    assert_eq!(strips(&bench), Some(false));
    let route = bench.route("a.example", "/api/x").expect("served");
    assert_eq!(route.settings.host_header, HostHeader::Upstream);
    assert_eq!(
        (route.settings_key.as_ref()).map(|in_force| in_force.version.mod_revision),
        Some(3)
    );
    bench.delete(settings, 4).await;
    let route = bench.route("a.example", "/api").expect("served");
    assert!(Arc::ptr_eq(
        &route.settings,
        &crate::route::Settings::shared_default()
    ));
    assert_eq!(bench.rejected(), []);
}

#[tokio::test]
async fn settings_leave_the_options_of_upstreams_alone() {
    let bench = Bench::start();
    let value = r#"{"weight": 2, "backup": true, "max_requests": 3, "tls": {"sni": "b.test"},
        "pool": {"max_idle": 4}, "proxy_protocol": "v2"}"#;
    let keys = [
        ("a.example/10.0.0.1:80", value, 1),
        ("a.example/10.0.0.2:80", r#"{"protocol": "h2"}"#, 1),
    ];
    bench.snapshot(1, &keys).await;
    let members = || {
        let route = bench.route("a.example", "/").expect("served");
        let seen = route.members.iter().map(|member| {
            let options = (member.weight, member.role, member.max_requests);
            (member.upstream.identity.clone(), options)
        });
        seen.collect::<Vec<_>>()
    };
    let before = members();
    bench
        .put("a.example/@settings", r#"{"add_prefix": "/x"}"#, 2)
        .await;
    assert_eq!(members(), before);
}

#[tokio::test]
async fn settings_under_two_spellings_of_a_host_do_not_delete_each_other() {
    let bench = Bench::start();
    let in_force = |bench: &Bench| {
        let route = bench.route("blog.x", "/")?;
        let version = &route.settings_key.as_ref()?.version;
        Some((
            route.settings.add_prefix.to_string(),
            version.key.to_string(),
            version.mod_revision,
        ))
    };
    let expected = |prefix: &str, spelling: &str, revision| {
        Some((
            prefix.to_owned(),
            format!("/hosts/{spelling}/@settings"),
            revision,
        ))
    };
    let asking_for = |prefix: &str| format!("{{\"add_prefix\": \"{prefix}\"}}");
    bench
        .snapshot(
            3,
            &[
                ("blog.x/10.0.0.1:80", "", 1),
                ("Blog.x/@settings", &asking_for("/upper"), 2),
                ("blog.x/@settings", &asking_for("/lower"), 3),
            ],
        )
        .await;
    assert_eq!(in_force(&bench), expected("/upper", "Blog.x", 2));
    bench
        .put("blog.x/@settings", &asking_for("/waits"), 4)
        .await;
    assert_eq!(in_force(&bench), expected("/upper", "Blog.x", 2));
    bench.delete("Blog.x/@settings", 5).await;
    assert_eq!(in_force(&bench), expected("/waits", "blog.x", 4));
    bench
        .put("Blog.x/@settings", &asking_for("/again"), 6)
        .await;
    assert_eq!(in_force(&bench), expected("/again", "Blog.x", 6));
    // Gone while nobody watched, though it was not in force.
    bench
        .snapshot(
            9,
            &[
                ("blog.x/10.0.0.1:80", "", 1),
                ("Blog.x/@settings", &asking_for("/again"), 6),
            ],
        )
        .await;
    bench.delete("Blog.x/@settings", 10).await;
    assert_eq!(in_force(&bench), None);
}
