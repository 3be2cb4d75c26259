//! Messages that are not valid protobuf.

use super::*;

#[tokio::test]
async fn a_malformed_message_is_an_invalid_argument() {
    let mut server = TestServer::new(1 << 20).await;
    let (client, _) = server.client().await;
    for path in [PING, EXECUTE, MULTIPLEX] {
        // A field of two bytes, of which one is missing.
        let body = Bytes::from_static(&[0, 0, 0, 0, 3, 0x0a, 2, b'x']);
        let (code, text) = call(&client, request(path), body).await;
        assert_eq!(code, tonic::Code::InvalidArgument as u32, "{path}: {text}");
        assert!(text.starts_with("the message is not valid protobuf: "), "{path}: {text}");
    }
    assert_eq!(ping(&client).await, 0);
}
