"""Two platforms by configuration alone: the providers of config/examples, which an installed program does not have."""

from __future__ import annotations

from typing import Final

# config/examples/ishareradio-http.yaml
ISHARERADIO_BY_HTTP: Final = """\
kind: http
url: https://mqtt.ishareradio.com/api/v1/subscriber
auth: {token: {file: secrets/ishareradio-token}}
rate_limit: {requests: 5000, per: 1h, burst: 100}
strategy: in_place
errors: {message: "detail || error"}
requests:
  list:
    method: GET
    path: /publishers
    result:
      items: not_null(publishers, clients, devices, items, @)
      id: client_id
      name: label
      active: "!paused"
  issue:
    method: POST
    path: /publishers/{id}/rotate-credentials
    # the document does not say which of the two it is
    result: {secret: "device.password || password"}
    absent: {when: "contains(detail, 'not found')"}
  deactivate:
    method: POST
    path: /publishers/{id}/pause
    absent: {when: "contains(detail, 'not found')"}
  reactivate:
    method: POST
    path: /publishers/{id}/resume
    absent: {when: "contains(detail, 'not found')"}
  delete:
    method: DELETE
    path: /publishers/{id}
    absent: {when: "contains(detail, 'not found')"}
"""

# config/examples/haltian-graphql.yaml
HALTIAN_BY_GRAPHQL: Final = """\
kind: graphql
url: https://haltian-iot-api.eu.haltian.io/v1/graphql
strategy: in_place
lifetime: 90d
auth:
  login:
    username: rotator@acme.example
    password: {file: secrets/haltian-password}
    request:
      document: |
        mutation Login($email: String!, $organizationName: String!, $password: String!) {
          login(loginInput: {email: $email, organizationName: $organizationName, password: $password}) {
            accessToken
            expiresIn
            refreshExpiresIn
            refreshToken
            organizationId
          }
        }
      variables: {email: "{username}", organizationName: acme, password: "{password}"}
    renew:
      document: |
        mutation RefreshToken($organizationId: uuid!, $refreshToken: String!) {
          refreshToken(refreshTokenInput: {organizationId: $organizationId, refreshToken: $refreshToken}) {
            accessToken
            expiresIn
            refreshExpiresIn
            refreshToken
          }
        }
      variables: {organizationId: "{organization}", refreshToken: "{refresh}"}
    # one of the two is there, by which document was asked
    access: "*.accessToken | [0]"
    refresh: "*.refreshToken | [0]"
    expires_in: "*.expiresIn | [0]"
    refresh_expires_in: "*.refreshExpiresIn | [0]"
    keep: {organization: login.organizationId}
documents:
  list:
    document: |
      query ListApiKeys {
        apiKeys {
          id
          name
          token { issuedAt expiresAt revokedAt }
          organizationRoles { roleName }
        }
      }
    result:
      items: apiKeys
      id: id
      name: name
      issued_at: token.issuedAt
      expires_at: token.expiresAt
      active: "!(token.revokedAt) && contains(organizationRoles[].roleName, 'MqttIntegrator')"
  issue:
    document: |
      mutation RefreshApiKey($apiKeyId: uuid!) {
        refreshApiKeyToken(refreshApiKeyTokenInput: {apikeyId: $apiKeyId}) {
          id
          token { token issuedAt expiresAt }
        }
      }
    variables: {apiKeyId: "{id}"}
    result:
      id: refreshApiKeyToken.id
      secret: refreshApiKeyToken.token.token
      issued_at: refreshApiKeyToken.token.issuedAt
      expires_at: refreshApiKeyToken.token.expiresAt
  delete:
    document: |
      mutation DeleteApiKey($apiKeyId: uuid!) {
        deleteApiKey(deleteApiKeyInput: {apikeyId: $apiKeyId}) { message }
      }
    variables: {apiKeyId: "{id}"}
"""
