//! Operations on several variables, on a host in this process and on a remote one.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;

use snakepit_server::{
    Client, Error, HostHandle, Payload, SessionError, SessionHandle, SetVariable, Snakepit, VariableType,
    testing::InProcessWorkers,
};

fn write(name: &str, value: i64) -> SetVariable {
    SetVariable::new(name, Payload::try_from_serde(&value).unwrap())
}

async fn check(session: &SessionHandle<impl HostHandle>) {
    let id = session.register("a", VariableType::integer().range(0..=9), 1).await.unwrap();
    session.register("b", VariableType::integer(), 2).await.unwrap();
    session.register("c", VariableType::integer(), 3).await.unwrap();

    let names = ["b", "missing", id.as_str(), "a", "a"];
    assert_eq!(
        session.get_many::<i64>(&names).await.unwrap(),
        [Some(2), None, Some(1), Some(1), Some(1)],
        "in the order of the identifiers"
    );
    assert!(session.get_many::<i64>(&[]).await.unwrap().is_empty());
    let wrong_type = session.get_many::<String>(&["a"]).await.unwrap_err();
    assert!(matches!(wrong_type, Error::Payload(_)), "{wrong_type}");

    // All writes, or none.
    assert_eq!(session.set_many([("b", 20), ("a", 5)]).await.unwrap(), [1, 1]);
    let rejected = session.set_many([("b", 30), ("a", 50), ("missing", 1)]).await.unwrap_err();
    let Error::Session(SessionError::BatchRejected { errors }) = rejected else { panic!("{rejected}") };
    assert_eq!(errors.keys().collect::<Vec<_>>(), ["a", "missing"]);
    assert_eq!(session.get_many::<i64>(&["a", "b"]).await.unwrap(), [Some(5), Some(20)]);

    // Each write alone.
    let writes = vec![write("b", 30), write("a", 50), write("missing", 1), write("c", 4).if_version(7)];
    let outcomes = session.write_each(writes).await.unwrap();
    assert_eq!(outcomes[0], Ok(2));
    assert!(matches!(&outcomes[1], Err(SessionError::InvalidValue { variable, .. }) if variable == "a"));
    assert!(matches!(&outcomes[2], Err(SessionError::VariableNotFound { .. })), "{outcomes:?}");
    assert!(
        matches!(&outcomes[3], Err(SessionError::VersionConflict { expected: 7, actual: 0, .. })),
        "{outcomes:?}"
    );
    let found = session.find_variables(&["b", "a", "missing"]).await.unwrap();
    let versions: Vec<_> = found.iter().map(|variable| Some(variable.as_ref()?.version)).collect();
    assert_eq!(versions, [Some(2), Some(1), None]);
    let twice = session.write_each(vec![write("b", 1), write("b", 2)]).await.unwrap_err();
    assert!(matches!(twice, Error::Session(SessionError::BatchRejected { .. })), "{twice}");
    assert_eq!(session.get::<i64>("b").await.unwrap(), 30);

    let deleted = session.delete_many(&["c", "missing", "b", "c"]).await.unwrap();
    assert_eq!(deleted, [true, false, true, false]);
    let left: Vec<_> = session.variables("").await.unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(left.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn batches_have_the_same_results_on_local_and_remote_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = Snakepit::builder()
        .launcher(Arc::new(InProcessWorkers::new()))
        .workers(1)
        .run_dir(dir.path())
        .start()
        .await
        .unwrap();
    check(&snakepit.session("local").await.unwrap()).await;
    let client = Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    let session = client.session("remote").await.unwrap();
    check(&session).await;

    session.delete().await.unwrap();
    let ended = snakepit.session("remote").await.unwrap();
    snakepit.sessions().delete(ended.id()).await.unwrap();
    let missing = ended.get_many::<i64>(&["a"]).await.unwrap_err();
    assert!(matches!(missing, Error::Session(SessionError::NotFound { .. })), "{missing}");
    snakepit.shutdown().await.unwrap();
}
