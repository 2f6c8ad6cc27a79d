from app import app


def test_signing():
    client = app.test_client()
    assert client.post("/", data={"name": "Ada", "text": "hello"}).status_code == 201
    assert b"Ada" in client.get("/").data
